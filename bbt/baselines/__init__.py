"""What Black-Box Tuning is compared with where gradients can be had. The only part of bbt that imports torch."""
