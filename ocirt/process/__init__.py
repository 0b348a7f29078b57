"""What happens between `create` and the container's program."""
