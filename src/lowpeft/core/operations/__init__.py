"""Carry plans out, and what is done to an adapted network: switch, merge, calibrate, check, count."""
