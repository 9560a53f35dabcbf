"""What a person looks at after a run: `report.json` and one self-contained HTML page."""
