"""The models that ship with TridentServe; nothing in the served packages imports this folder."""
