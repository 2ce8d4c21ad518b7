"""How messages move and rest: publish, subscribe, call, replay. Knows no storage noun."""
