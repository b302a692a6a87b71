"""Beam transforms and the records that travel between them.

A transform is a dataclass: its fields are its parameters, its checks run when it is made, its `expand` only wires,
and its logic is a plain function that needs no Beam. (They cannot be frozen: Beam writes a label into them. They
compare by identity, as Beam expects.)
"""
