"""The service: HTTP in, keypoints out."""
