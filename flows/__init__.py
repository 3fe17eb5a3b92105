"""Orchestration only: order, retries, gates, schedules, what the Prefect UI shows. Start at end_to_end."""
