"""`tiny`: the embedded policy. See docs/tiny.md."""
