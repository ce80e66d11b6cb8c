"""What a run is told: the flags, what a method is, and how a wrong request is answered. Imports no torch."""
