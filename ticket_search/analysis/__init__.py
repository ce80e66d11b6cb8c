"""What runs say together: comparison, verdict, mask geometry, and how they are shown."""
