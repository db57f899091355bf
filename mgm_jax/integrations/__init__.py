"""What plugs into other projects. Nothing here imports them."""
