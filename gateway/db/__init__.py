"""The database: tables and connections. Only jobs/ reads and writes them."""
