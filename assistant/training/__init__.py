"""One trainer for every recipe: rows → examples → anchored steps → the best adapter."""
