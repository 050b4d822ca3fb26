"""Data, augmentation, loop, evaluation, publishing; writes the weight packages that `app/` serves."""
