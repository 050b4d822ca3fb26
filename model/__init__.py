"""What training and serving must agree on: networks, codec, crop geometry, skeletons, weight packages."""
