"""ocirt-proxy: takes connections on ports of the host and passes them on to a container."""
