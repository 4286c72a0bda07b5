"""What all figures draw with: style and looks, checks of tables, lines and points over seeds, and saving."""
