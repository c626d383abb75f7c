"""What only measures or maintains the project; not part of the wheel."""
