"""What the steps share; knows no step."""
