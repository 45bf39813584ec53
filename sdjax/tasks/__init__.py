"""The tasks that draw pictures from text and pictures, with their options, plans and compiled stages."""
