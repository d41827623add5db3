//! Where a placement goes: the same code at both tiers.
