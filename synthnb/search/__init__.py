"""The search: `matcher` finds patches that sound like a recording."""
