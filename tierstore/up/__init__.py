"""`tierstore up`: a whole cluster on one machine, as child processes. See DESIGN.md beside this file.

    keys         random credentials of the cluster, kept in its data directory
    plan         which processes, ports, directories and settings: pure
    child        one process: started, watched, started again, stopped
    supervisor   all of them: sockets, readiness, ready file, signals
    control      how `tierstore admin roll` asks for a planned restart
    probe        one small HTTP request, to see whether a daemon answers
"""
