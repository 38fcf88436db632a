"""The conformance suite, for our domains and for those of other packages. In a lab's own tests:

    from sciml.testing import check_domain

    def test_my_domain(my_store):
        check_domain("my_domain", [my_store])
"""

from sciml.testing.conformance import CHECKS, Subject, check_domain, prepare

__all__ = ["CHECKS", "Subject", "check_domain", "prepare"]
