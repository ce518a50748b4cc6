"""Published methods: from data to edits."""
