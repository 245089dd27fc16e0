"""The metadata service, put together: the only place of the package that builds things."""
