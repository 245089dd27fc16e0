"""HTTP serving for the three daemons: protocol class, adapters, problem answers, limits, drain. See DESIGN.md."""
