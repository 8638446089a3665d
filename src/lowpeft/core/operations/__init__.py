"""Operations: carry out plans; switch, merge, calibrate, check and summarise adapted networks."""
