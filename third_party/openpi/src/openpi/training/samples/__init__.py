"""Which sample comes next: datasets by index, and the order in which they are drawn."""
