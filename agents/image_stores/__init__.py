"""Plug-ins for image stores: one file each, found by entry point, proved by the contract suite."""
