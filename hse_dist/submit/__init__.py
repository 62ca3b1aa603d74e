"""`hse-dist submit`: a job on a Ray cluster that is there, as if it ran here.

    words ─▶ address ─▶ paths ─▶ package ─▶ environment ─▶ server ─▶ follow ─▶ outcome
    (of the command)   (absolute) (one zip)  (runtime_env)  (Ray's HTTP) (the log) (result, or an error with its exit code)

`shared` is what the job looks for on the cluster. Only `server` and `package` know Ray.
"""
