"""One protocol, many models: a `Pair` goes in, a `Location` comes out."""
