"""The command line: `hse-dist JOB configs/x.toml section.key=value …`.

    argv ─▶ parser ─▶ commands ─▶ a job's function ─▶ console ─▶ one JSON object, last line of standard output

A job logs to standard error and ends with exit code 0 only on success, 2 for a mistake that the user can mend (one
clear message, no traceback), 1 for a failure of the system, 130 when interrupted. Everything heavy is imported by the
job that needs it, so that help and mistakes in a configuration come at once.
"""
