"""schemathesis against the application's own schema: no crash, and answers that are as the schema says."""

from __future__ import annotations
