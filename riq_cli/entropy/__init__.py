"""Symbols ↔ bytes: rANS, tables, Student's t with scale contexts, and the rate of symbols before they are coded."""
