"""The tests: unit, contract, integration, acceptance, faults, architecture. Services are in `conftest.py`."""
