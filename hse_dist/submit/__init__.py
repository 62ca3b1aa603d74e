"""`hse-dist submit`: a job on a Ray cluster that is there, as if it ran here.

    words ─▶ address ─▶ paths ─▶ package ─▶ environment ─▶ server ─▶ follow ─▶ outcome
                        (absolute) (one zip)  (runtime_env)  (Ray's HTTP) (the log)  (result, or an error)

`run` joins them. `shared` is what the job looks for on the cluster. Only `server` and `package` know Ray.
"""
