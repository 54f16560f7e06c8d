"""A population is scored by actors of a Ray cluster, each of which holds a backend of ours.

backend       what the search sees: the protocol of a backend, with what the actors' own backend offers
offers        the capabilities beside label scores, one class each
crew          questions -> answers: which actor is asked what, and what happens when one dies
actor         a backend in a process of its own
"""

from backends.ray.backend import RayBackend

__all__ = ["RayBackend"]
