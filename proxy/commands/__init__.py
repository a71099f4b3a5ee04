"""What each `illm COMMAND` does, a module each; `cli` has the parser and imports only the one that was asked for."""
