"""The command line. Commands are thin: they parse, call the SDK or the admin API, and print.

    main        the application and how errors end a command
    output      tables, JSON, sizes; the one place that prints
    cluster     which cluster a command talks to: --endpoint/--token, environment, profile file
    up, daemons starting things
    objects     mb rb ls mv rm cat stat
    transfer    cp and sync, with progress
    admin       what operators ask and do
    roll        planned restart of every process
    bench       a quick load test
    settings    config show | check
"""
