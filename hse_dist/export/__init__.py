"""The trained items as files, and recommendations from these files alone: no Ray, torch or TorchRec is imported."""
