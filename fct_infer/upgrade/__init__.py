"""Plan, run, verify and publish the upgrade of one gallery."""
