"""What `handstamp doctor` looks at: any table of sessions, its grants and its server."""
