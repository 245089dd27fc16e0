"""The S3 door of the gateway. See DESIGN.md."""
