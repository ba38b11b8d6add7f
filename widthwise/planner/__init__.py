"""From measurements to plans: prediction, importance, exact allocation, verification."""
