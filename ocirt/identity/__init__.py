"""Who the container's process is and what it may do."""
