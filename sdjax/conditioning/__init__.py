"""Whatever a picture is asked for -> Cond."""
