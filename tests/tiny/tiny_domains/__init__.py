"""Four tiny domains, a package of its own: what the waist must carry, at the smallest size that shows it.

The folder above holds its ``dist-info`` too, so on ``sys.path`` it is an installed plug-in like any other.
"""
