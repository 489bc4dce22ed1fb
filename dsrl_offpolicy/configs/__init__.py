"""Settings of every job: fields that are flags, their ranges, and YAML files with the same defaults."""
