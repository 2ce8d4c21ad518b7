"""Hypervisors: one file each, behind one short interface."""
