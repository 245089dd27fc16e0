"""A bucket as a mounted file system: see DESIGN.md."""

NEEDS = (
    "mounting needs pyfuse3 and FUSE: `apt-get install libfuse3-dev pkg-config fuse3 gcc`, then "
    "`pip install 'tierstore[fuse]'`"
)
