"""The search: `matcher` looks for patches that sound like a recording, `match` is what it found."""
