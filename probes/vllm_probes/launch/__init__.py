"""What is launched: the shim, the launch and the named changes to it."""
